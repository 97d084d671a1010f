"""The terminal app: views that know no screen, the screens that draw them, and a recorded demo."""
