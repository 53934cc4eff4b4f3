"""What kaasd is measured against, each a small program that does the same work in another way."""
