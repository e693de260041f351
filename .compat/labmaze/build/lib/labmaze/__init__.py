"""Empty on purpose: see pyproject.toml beside this folder."""
