"""The one error type of the trainer that the command line shows as a plain message."""


class UserError(ValueError):
    """Something the user can put right: bad data, a folder that holds another run, settings that do not fit."""
