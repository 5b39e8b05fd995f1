"""A thin trainer around the library: data, models, loop, run folder and report. It needs the extra ``[train]``."""
