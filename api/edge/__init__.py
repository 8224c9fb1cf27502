"""Everything between the network and the routes: authentication, limits, reading of bodies, errors, metrics."""
