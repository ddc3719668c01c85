"""Git, archives, patches: an extension of any origin becomes a checkout at a commit."""
