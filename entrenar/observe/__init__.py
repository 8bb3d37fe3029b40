"""What a program tells of itself while it runs; knows no model."""

from entrenar.observe.events import Metric, Span, Subscriber, metric, span, subscribe, unsubscribe

__all__ = ["Metric", "Span", "Subscriber", "metric", "span", "subscribe", "unsubscribe"]
