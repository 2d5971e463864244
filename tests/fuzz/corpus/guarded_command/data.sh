git commit -m 'rm -rf /' # rm -rf /
