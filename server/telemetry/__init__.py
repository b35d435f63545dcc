"""What the server tells its operators: metrics, a summary of the last minutes, spans. None of it has text of a request.

``telemetry`` puts the parts together, ``metrics`` and ``collector`` are what Prometheus reads, ``window`` the summary,
``tracing`` OpenTelemetry's spans, ``http`` the port of the first two.
"""
