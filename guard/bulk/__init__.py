"""Judging files of rows: as many as there are, in order, by several processes or a Ray cluster, through any kill.

``run.moderate`` is the whole of it: a ``Source`` of rows, a ``Backend`` that judges them, a directory that keeps what
was judged so far. Needs pyarrow for Parquet, and ray for ``ray_data`` alone.
"""
