(* Finite maps from numbers (pages, gfns, ids) to things, and sums over them.
   Coq's own PositiveMap, with keys that may be 0. Nothing here is about a hypervisor. *)
Require Import NArith List Lia Permutation SetoidList FMapPositive.
Import ListNotations.
Local Open Scope N_scope.

Module PM := PositiveMap.
Definition Map (A : Type) := PM.t A.

Section Maps.
Context {A : Type}.
Implicit Types m : Map A.

Definition empty : Map A := PM.empty A.
Definition get m (k : N) : option A := PM.find (N.succ_pos k) m.
Definition set m (k : N) (a : A) : Map A := PM.add (N.succ_pos k) a m.
Definition remove m (k : N) : Map A := PM.remove (N.succ_pos k) m.
(* Every key with what stands there, each once. *)
Definition entries m : list (N * A) := map (fun e => (Pos.pred_N (fst e), snd e)) (PM.elements m).

(* The sum of [f] over everything in the map. *)
Fixpoint sum (f : A -> N) (l : list (positive * A)) : N :=
  match l with [] => 0 | e :: rest => f (snd e) + sum f rest end.
Definition total (f : A -> N) m : N := sum f (PM.elements m).
Definition at_key (f : A -> N) m k : N := match get m k with Some a => f a | None => 0 end.

Lemma key_inj : forall k j, N.succ_pos k = N.succ_pos j -> k = j.
Proof. intros k j H. apply (f_equal Pos.pred_N) in H. rewrite !N.pos_pred_succ in H. exact H. Qed.

Lemma get_empty : forall k, get empty k = None.
Proof. intros. apply PM.gempty. Qed.

Lemma get_set : forall m k a j, get (set m k a) j = if k =? j then Some a else get m j.
Proof.
  intros. unfold get, set. destruct (N.eqb_spec k j) as [->|n].
  - apply PM.gss.
  - apply PM.gso. intro H. apply n. symmetry. apply key_inj. exact H.
Qed.

Lemma get_remove : forall m k j, get (remove m k) j = if k =? j then None else get m j.
Proof.
  intros. unfold get, remove. destruct (N.eqb_spec k j) as [->|n].
  - apply PM.grs.
  - apply PM.gro. intro H. apply n. symmetry. apply key_inj. exact H.
Qed.

Lemma in_elements : forall m p a, In (p, a) (PM.elements m) <-> PM.find p m = Some a.
Proof. intros. split; [apply PM.elements_complete | apply PM.elements_correct]. Qed.

Lemma entries_get : forall m k a, In (k, a) (entries m) <-> get m k = Some a.
Proof.
  intros. unfold entries, get. rewrite in_map_iff. split.
  - intros [[p b] [E H]]. cbn in E. injection E as <- <-. apply in_elements in H.
    destruct p; cbn in *; [exact H | rewrite Pos.succ_pred_double; exact H | exact H].
  - intros H. apply in_elements in H. exists (N.succ_pos k, a). cbn. rewrite N.pos_pred_succ. auto.
Qed.

Lemma elements_nodup : forall m, NoDup (PM.elements m).
Proof.
  intros. pose proof (PM.elements_3w m) as H. induction H as [|x l no _ IH]; constructor; trivial.
  intro i. apply no. apply InA_alt. exists x. split; [reflexivity | exact i].
Qed.

Lemma sum_permutation : forall f l l', Permutation l l' -> sum f l = sum f l'.
Proof. intros f l l' H. induction H; cbn; lia. Qed.

Lemma total_remove : forall f m k, total f (remove m k) + at_key f m k = total f m.
Proof.
  intros. unfold total, at_key, get, remove. destruct (PM.find (N.succ_pos k) m) as [a|] eqn:E.
  - assert (P : Permutation (PM.elements m) ((N.succ_pos k, a) :: PM.elements (PM.remove (N.succ_pos k) m))).
    { apply NoDup_Permutation; [apply elements_nodup | constructor; [|apply elements_nodup] |].
      - rewrite in_elements, PM.grs. discriminate.
      - intros [p b]. cbn. rewrite !in_elements. destruct (Pos.eq_dec p (N.succ_pos k)) as [->|n].
        + rewrite PM.grs. rewrite E. split; [intro H; left; injection H as ->; reflexivity | intros [H|H]; [injection H as ->; reflexivity | discriminate]].
        + rewrite (PM.gro _ n). split; [auto | intros [H|H]; [congruence | exact H]]. }
    rewrite (sum_permutation _ _ _ P). cbn. lia.
  - rewrite N.add_0_r. apply sum_permutation, NoDup_Permutation; try apply elements_nodup.
    intros [p b]. rewrite !in_elements. destruct (Pos.eq_dec p (N.succ_pos k)) as [->|n].
    + rewrite PM.grs, E. reflexivity.
    + rewrite (PM.gro _ n). reflexivity.
Qed.

Lemma total_set : forall f m k a, total f (set m k a) + at_key f m k = total f m + f a.
Proof.
  intros. rewrite <- (total_remove f m k), <- (total_remove f (set m k a) k).
  assert (R : total f (remove (set m k a) k) = total f (remove m k)).
  { apply sum_permutation, NoDup_Permutation; try apply elements_nodup.
    intros [p b]. rewrite !in_elements. unfold remove, set. destruct (Pos.eq_dec p (N.succ_pos k)) as [->|n].
    - rewrite !PM.grs. reflexivity.
    - rewrite !(PM.gro _ n), (PM.gso _ _ n). reflexivity. }
  rewrite R. unfold at_key at 1. rewrite get_set, N.eqb_refl. lia.
Qed.

Lemma total_at : forall f m k a, get m k = Some a -> f a <= total f m.
Proof. intros f m k a H. rewrite <- (total_remove f m k). unfold at_key. rewrite H. lia. Qed.

Lemma total_empty : forall f, total f empty = 0.
Proof. reflexivity. Qed.

Lemma total_0 : forall f m, (forall k a, get m k = Some a -> f a = 0) -> total f m = 0.
Proof.
  intros f m H. assert (G : forall e, In e (PM.elements m) -> f (snd e) = 0).
  { intros [p a] i. apply (H (Pos.pred_N p)). apply entries_get. unfold entries. apply in_map_iff.
    exists (p, a). auto. }
  unfold total. induction (PM.elements m) as [|e l IH]; trivial.
  change (f (snd e) + sum f l = 0). rewrite (G e (or_introl eq_refl)), IH; [reflexivity |].
  intros e' i. apply G. right. exact i.
Qed.

Definition is_empty m : bool := match PM.elements m with [] => true | _ => false end.

Lemma is_empty_get : forall m, is_empty m = true -> forall k, get m k = None.
Proof.
  intros m H k. destruct (get m k) eqn:E; trivial. apply in_elements in E.
  unfold is_empty in H. destruct (PM.elements m); [destruct E | discriminate].
Qed.
End Maps.

(* Splits on a comparison of keys that the goal or a hypothesis makes. *)
Ltac keys :=
  repeat match goal with
  | H : context [get (set _ _ _) _] |- _ => rewrite get_set in H
  | H : context [get (remove _ _) _] |- _ => rewrite get_remove in H
  | |- context [get (set _ _ _) _] => rewrite get_set
  | |- context [get (remove _ _) _] => rewrite get_remove
  | H : context [?a =? ?b] |- _ => destruct (N.eqb_spec a b); [subst | ]
  | |- context [?a =? ?b] => destruct (N.eqb_spec a b); [subst | ]
  end.
