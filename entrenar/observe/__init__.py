"""What a program reports while it runs; imports no model."""

from entrenar.observe.events import Event, Metric, Span, Subscriber, event, metric, span, subscribe, unsubscribe

__all__ = ["Event", "Metric", "Span", "Subscriber", "event", "metric", "span", "subscribe", "unsubscribe"]
