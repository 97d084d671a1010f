"""What is known of a model in the field: counts and sketches of its answers, never their words."""
