CREATE INDEX messages_out ON messages(peer_fp) WHERE direction = 'out';
CREATE INDEX messages_sealed ON messages(peer_fp) WHERE direction = 'in' AND auth = 'e2e';
