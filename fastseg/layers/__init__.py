"""Building blocks of the models, named after the papers' boxes."""
