"""Speech as sound: measures, comparisons, transcripts and pictures, with numpy only."""
