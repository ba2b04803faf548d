"""What peft_ext offers to sqft, through the hooks."""
