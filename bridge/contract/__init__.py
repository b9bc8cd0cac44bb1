"""What others say and hear: topics, commands and payloads as types. It knows no store, network or clock."""
