"""The options of the gRPC server's connections."""

from __future__ import annotations


def options(max_message_bytes: int, max_connection_age_s: float) -> list[tuple[str, int]]:
    """``max_message_bytes`` bounds a request after decompression. A connection that is older than
    ``max_connection_age_s`` seconds, give or take a tenth, takes no new calls and ends after those it has; 0 is never.
    """
    age = [("grpc.max_connection_age_ms", round(max_connection_age_s * 1000))] if max_connection_age_s else []
    return [
        *age,
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.absolute_max_metadata_size", 16 << 10),
        ("grpc.so_reuseport", 0),  # a second server on the same port fails instead of sharing it in silence
        # A caller whose machine vanished is noticed, and its compute stopped, within a minute and a half.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]
