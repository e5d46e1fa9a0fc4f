"""The residency policy beside published ones and a solver's optimum, on seeded traces."""
