"""Storage formats: how kept positions and kept values lie in memory."""
