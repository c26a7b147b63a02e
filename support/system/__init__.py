"""What a program needs of its system."""
