"""Measuring a guard on labelled rows: reading them, judging them with resume, figures, and a report.

Needs numpy alone (and pyarrow for Parquet). Texts are read, hashed and judged; nothing here writes one.
"""
