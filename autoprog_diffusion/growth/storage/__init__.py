"""Small storage of frozen weights: the formats, one layer, and the layers of a model from stage to stage."""
