"""Run by test_projections.py in a process of its own: prints the bytes of regenerated projections."""

import numpy as np
from test_projections import SHAPES

from tfbio.feedback import projections

projections._TILE = 640
for projection in projections.make_projections("regenerated", None, 1.0, 3, 10, SHAPES, "float32"):
    print(np.asarray(projection.matrix).tobytes().hex())
