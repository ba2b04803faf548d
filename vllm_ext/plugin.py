"""What vllm_ext offers to sqft, through the hooks."""
