"""The three products of a linear layer whose kept weights are whole blocks (format ``"blocks"``).

``acdc_kernels.sparse_linear`` calls them for a topology of blocks; they have no public function of their own.
"""
