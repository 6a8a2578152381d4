"""The honest protocol: what a study is, which runs it needs, where they run and are kept."""
