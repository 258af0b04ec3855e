"""What happens to instances by itself: rules as pure functions, and who follows them."""
