"""What a person looks at: tables, figures, heat maps, the HTML page."""
