"""From results to what people read: tables, intervals, ranks, the page of a study."""
