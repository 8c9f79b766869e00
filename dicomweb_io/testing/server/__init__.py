"""The rooms of the test server; its public face is `dicomweb_io.testing`.

`server` starts and stops it, `command` is ``dicomweb-io serve``. `app` finds out who answers a request: `qido`
searches, `wado` retrieves, `stow` stores and deletes, `feeds` reports changes, `auth` checks who is asking. They share
the request and its answer (`exchange`), what answers consist of (`parts`), the archive and its log (`site`), and how
known servers behave (`behaviour`, `behaviours`). What goes wrong on demand stands in `dicomweb_io.testing.faults`.
"""
