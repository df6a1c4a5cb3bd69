"""An objective, a merge method and a metric of another distribution than Expunge's."""
