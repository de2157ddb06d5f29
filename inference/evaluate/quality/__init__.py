"""How good generated speech is, by judges that work offline, beside speech that is known to be good or bad."""
