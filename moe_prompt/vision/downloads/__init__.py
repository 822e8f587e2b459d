"""Files from package registries and hubs, checked before they are used."""
