"""Sessions with Google credentials, under an import path of the original library."""

from dicomweb_io.session_utils import create_session_from_gcp_credentials

__all__ = ["create_session_from_gcp_credentials"]
