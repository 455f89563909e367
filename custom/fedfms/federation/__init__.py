"""The server's side of a round, without NVFLARE: dispatch, validation, robust aggregation, server state."""
