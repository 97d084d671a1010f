"""The terminal app's screens: each draws one view of `edgekit.app.views`."""
