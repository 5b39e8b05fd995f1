"""What to prune and when: schedules, patterns and scopes. Pure descriptions; nothing here touches a tensor."""
