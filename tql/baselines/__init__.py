"""The nine methods that TQL is compared with, one file each; `config.METHODS` names them."""
