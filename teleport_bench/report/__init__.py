"""Tables, figures and the page: pure functions of a suite and its records."""
