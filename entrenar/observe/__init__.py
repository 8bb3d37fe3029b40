"""What a program reports while it runs; imports no model."""

from entrenar.observe.events import Metric, Span, Subscriber, metric, span, subscribe, unsubscribe

__all__ = ["Metric", "Span", "Subscriber", "metric", "span", "subscribe", "unsubscribe"]
