"""Edge servers that answer from a vector store, augment the prompt with it, or ask a cloud LLM that they share (VELO)."""
