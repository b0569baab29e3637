"""A run's whole state on disk: cut at a version while training goes on, checked before anything of it is used."""
