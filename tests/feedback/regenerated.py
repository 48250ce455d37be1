"""Run by test_projections.py in a process of its own: prints the bytes of regenerated projections."""

from test_projections import matrices

from tfbio.feedback import projections

projections._TILE = 640
for matrix in matrices("regenerated"):
    print(matrix.tobytes().hex())
