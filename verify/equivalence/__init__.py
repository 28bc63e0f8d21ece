"""Whether two programs are one network at two sizes, told without running either."""
