"""What gguf_ext offers to sqft, through the hooks."""
