"""What head masks look like, and what wordings and heads do to a score: numbers, tables and figures."""
