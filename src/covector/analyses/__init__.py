"""Floor 6: analyses, one per file: functions of opened things that return a Table."""
