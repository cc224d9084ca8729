"""How state is stored: written once for all domains, knows none of them."""
