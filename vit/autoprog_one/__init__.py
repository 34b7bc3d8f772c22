"""Depth and resolution that grow (AutoProg-One): `scheduler.ViTGrowth`, its plan, operators, supernet and searches."""
