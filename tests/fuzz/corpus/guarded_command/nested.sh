echo "$(case x in a) ls;; esac)" | sh -c 'cat <<E
$(rm -r x)
E' && {a,b{c,d}} ${x:-'y'}
