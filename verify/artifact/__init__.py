"""What was shipped, told without judging."""
